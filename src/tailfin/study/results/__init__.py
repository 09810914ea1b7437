"""What the finished cells of a study say: the table, statistics over seeds, the claims, the page."""
