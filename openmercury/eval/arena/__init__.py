"""Blind comparison of two contestants by people's votes (as Copilot Arena, arXiv 2502.09328, for one's own team).

contestants + prompts → match (two answers, names hidden) → a person → vote (SQLite) → rating
"""
