"""Pictures of the method, drawn from configurations."""
