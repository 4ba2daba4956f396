"""Other libraries' conventions over detops."""
