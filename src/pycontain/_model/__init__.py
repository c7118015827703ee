"""Value types shared by users and all packages, without input or output."""
