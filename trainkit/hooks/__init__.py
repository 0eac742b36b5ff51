"""The hooks of the loop, and the plugins that implement them."""
