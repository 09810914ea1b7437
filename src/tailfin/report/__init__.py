"""Plots and pages, made from plain values.

Public: `page.render` of a run, `study_page.render` of a study.
"""
