"""What a study file asks for: its settings, the arms that they make, and a cell for each run."""
