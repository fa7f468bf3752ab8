"""One file for every ``task=``, each with ``carry_out(job)``, and what they share."""
