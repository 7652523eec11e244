"""Analyses of trained models, as numbers (`autocdsr`, `ctr`) and as pictures (`autocdsr_plots`, `ctr_plots`)."""
