"""What commands print: tables, status and live progress."""
