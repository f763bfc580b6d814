"""What commands print: tables, status and progress."""
