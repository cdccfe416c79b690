"""A plug-in whose own dependency is missing: it is named in a warning and left out."""

import a_package_that_nobody_installed  # noqa: F401
