"""An example of compositions in a package of their own."""
