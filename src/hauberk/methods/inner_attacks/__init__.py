"""How a method makes the inputs that it learns from: an attack on the batch, searches and replays, several threat models."""
