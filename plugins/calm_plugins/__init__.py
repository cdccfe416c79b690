"""The plug-ins that come with calm-lightning, each declared by an entry point like anybody's."""
