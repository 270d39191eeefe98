"""What a run or a recipe looks like to a person: loaded, judged, plotted, drawn in the terminal, without torch."""
