"""Detection on own data: from any usual format to a trained detector and a comparison."""
