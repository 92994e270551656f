"""How faithful explanations are: measures of one image's map, and tables of methods x ways of merging."""
