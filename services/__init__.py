"""Everything that serves; never reaches torch."""
