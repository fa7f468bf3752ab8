"""One file for every stage of a method, named as in ``conf/stage``."""
