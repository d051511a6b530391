"""What a recipe will need before anything starts: memory, time and which layouts fit. Arithmetic on configuration."""
