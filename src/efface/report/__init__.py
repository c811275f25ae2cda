"""What the records of a run say: a report as data and as a page, gates that it must meet, runs compared."""
