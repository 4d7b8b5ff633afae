"""Claims: the file format, the cells of arms x seeds, their execution, the statistics and the report."""
