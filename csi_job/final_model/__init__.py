"""The final model: the best candidates trained again over seeds, the best kept and exported."""
