"""`python -m exp validate`: a checkpoint on the validation split."""

from exp.evaluation import evaluate


def main(argv: list[str]) -> int:
    """Evaluates `--ckpt_path` on the validation split."""
    return evaluate(argv, "validate")
