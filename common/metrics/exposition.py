"""Metrics in the text format of Prometheus.

The library takes some megabytes: who imports this module does so when it is first asked for.
"""

from collections.abc import Iterator

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.metrics.families import COUNTER
from common.metrics.samples import daemon_of, samples
from common.reports import Report

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(report: Report) -> bytes:
    return generate_latest(_Reported(report))


class _Reported(Collector):
    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        daemon = daemon_of(self._report)
        for family, values in samples(self._report).items():
            kind = CounterMetricFamily if family.kind == COUNTER else GaugeMetricFamily
            metric = kind(family.metric(daemon).removesuffix("_total"), family.meaning, labels=family.labels)
            for sample in values:
                metric.add_metric(sample.labels, sample.value)
            yield metric
