"""A module that needs a package which nobody has."""

import absent_package_of_a_test  # pyright: ignore[reportMissingImports, reportUnusedImport] # noqa: F401
