"""CSV files of people and spreadsheets: read as they were meant, written so that nothing in them is computed."""
