"""`python -m exp test`: a checkpoint on the test split."""

from exp.evaluation import evaluate


def main(argv: list[str]) -> int:
    """Evaluates `--ckpt_path` on the test split."""
    return evaluate(argv, "test")
