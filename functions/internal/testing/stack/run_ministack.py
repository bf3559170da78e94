"""ministack, whose alarms take metric math: of the metrics, the first one."""

from ministack.app import main
from ministack.services.cloudformation import provisioners

record = provisioners._cw_metric_alarm_record


def with_math(name, props):
    props = dict(props)
    stats = [q["MetricStat"] for q in props.pop("Metrics", []) if "MetricStat" in q]
    if stats:
        props.update(stats[0]["Metric"], Statistic="Sum", Period=stats[0]["Period"])
    return record(name, props)


provisioners._cw_metric_alarm_record = with_math
main()
