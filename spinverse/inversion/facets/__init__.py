"""Stages that look for the permeability of every facet.

    stage          `Stage`: measurements, control, priors, optimiser; runs itself
    controls       what optimisers move, and the permeability that it stands for
    priors         what is thought of membranes beforehand; `facet_graph` has facets round edges
    tao, adam, gauss_newton   the optimisers, one a file; `optimise` has what they share
    memory         what an optimiser needs to go on after an interruption
"""
