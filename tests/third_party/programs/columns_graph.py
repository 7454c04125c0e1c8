"""A graph of functions of columns, for dataflow.py."""

import pandas


def rolling_spend(spend: pandas.Series) -> pandas.Series:
    return spend.rolling(2).mean()


def spend_per_signup(spend: pandas.Series, signups: pandas.Series) -> pandas.Series:
    return spend / signups


def difference(rolling_spend: pandas.Series, spend_per_signup: pandas.Series) -> pandas.Series:
    return rolling_spend - spend_per_signup
