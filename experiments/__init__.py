"""Programs, configs, benchmarks and results of experiments; the programs are in `jaxrec.cli`."""
