"""Makes the models that engine/neural ships: data, drawn images, degradations, nets, recipes, training, export, scores."""
