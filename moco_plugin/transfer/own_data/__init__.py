"""Detection on own data: any usual format in, a trained detector and an honest comparison out."""
