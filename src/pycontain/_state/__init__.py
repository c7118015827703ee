"""Files that pycontain owns: roots, owners, id blocks."""
