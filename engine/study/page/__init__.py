"""The page of a comparison: one HTML file with figure, table, curves and mistakes, which opens without a network."""
