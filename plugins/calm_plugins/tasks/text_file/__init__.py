"""A user's own data: prompts and targets in JSONL, or plain text."""

from calm_plugins.tasks.text_file.data import TextFile as TextFile
