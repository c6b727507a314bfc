//! Readings as OpenTelemetry's own messages.

use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar as ProtoExemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge,
    Metric as ProtoMetric, NumberDataPoint, Sum, exemplar, metric, number_data_point,
};

use super::histogram::{Exemplar, Spread};
use super::metric::{Form, Metric, Point, Reading, Value};
use super::process::BEGUN;
use crate::otlp::value::{nanos, text};

/// The metrics of these readings. Sums count from the start of the process.
pub fn metrics(readings: &[Reading]) -> Vec<ProtoMetric> {
    let times = (nanos(*BEGUN), nanos(SystemTime::now()));
    let filled = readings.iter().filter(|reading| !reading.points.is_empty());
    filled.map(|reading| one(reading, times)).collect()
}

fn one(reading: &Reading, times: (u64, u64)) -> ProtoMetric {
    let metric = reading.metric;
    let numbers = || reading.points.iter().filter_map(|point| plain(metric, point, times)).collect();
    let cumulative = AggregationTemporality::Cumulative.into();
    let data = match metric.form {
        Form::Gauge => metric::Data::Gauge(Gauge { data_points: numbers() }),
        Form::Counter => {
            metric::Data::Sum(Sum { data_points: numbers(), aggregation_temporality: cumulative, is_monotonic: true })
        }
        Form::Histogram(_) => metric::Data::ExponentialHistogram(ExponentialHistogram {
            data_points: reading.points.iter().filter_map(|point| spread(metric, point, times)).collect(),
            aggregation_temporality: cumulative,
        }),
    };
    ProtoMetric {
        name: metric.name.into(),
        description: metric.help.into(),
        unit: metric.unit.into(),
        data: Some(data),
        ..ProtoMetric::default()
    }
}

fn attributes(metric: &Metric, labels: &[Arc<str>]) -> Vec<KeyValue> {
    // A label that does not apply is empty on the page and absent here.
    let named = metric.labels.iter().zip(labels).filter(|(_, value)| !value.is_empty());
    named.map(|(name, value)| text(name, &**value)).collect()
}

fn plain(metric: &Metric, point: &Point, (since, now): (u64, u64)) -> Option<NumberDataPoint> {
    let Value::Number(value) = point.value else { return None };
    Some(NumberDataPoint {
        attributes: attributes(metric, &point.labels),
        start_time_unix_nano: if metric.form == Form::Gauge { 0 } else { since },
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    })
}

fn spread(metric: &Metric, point: &Point, (since, now): (u64, u64)) -> Option<ExponentialHistogramDataPoint> {
    let Value::Spread(spread) = &point.value else { return None };
    let (offset, counts) = filled(spread);
    Some(ExponentialHistogramDataPoint {
        attributes: attributes(metric, &point.labels),
        start_time_unix_nano: since,
        time_unix_nano: now,
        count: spread.count(),
        sum: Some(spread.sum),
        scale: spread.grid.scale as i32,
        zero_count: spread.low,
        zero_threshold: 2f64.powi(spread.grid.low),
        positive: Some(Buckets { offset, bucket_counts: counts }),
        exemplars: spread.exemplars.iter().flatten().map(example).collect(),
        ..ExponentialHistogramDataPoint::default()
    })
}

/// The buckets from the first to the last that hold anything, and where the first one stands.
fn filled(spread: &Spread) -> (i32, Vec<u64>) {
    let is_filled = |count: &u64| *count > 0;
    let first = spread.buckets.iter().position(is_filled).unwrap_or(0);
    let end = spread.buckets.iter().rposition(is_filled).map_or(first, |last| last + 1);
    ((spread.grid.low << spread.grid.scale) + first as i32, spread.buckets[first..end].to_vec())
}

fn example(exemplar: &Exemplar) -> ProtoExemplar {
    ProtoExemplar {
        time_unix_nano: nanos(exemplar.at),
        trace_id: exemplar.trace.to_be_bytes().to_vec(),
        span_id: exemplar.span.to_be_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(exemplar.value)),
        ..ProtoExemplar::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::histogram::Histogram;
    use crate::telemetry::metric::Family;
    use crate::telemetry::table::{DURATION, REQUESTS};

    #[test]
    fn a_histogram_keeps_its_buckets() {
        let family = Family::<Histogram>::new(&DURATION);
        family.on(&["p", "o"], |histogram| {
            [0.3, 0.3, 1.0, 0.0].iter().for_each(|value| histogram.observe(*value, Some((1, 2))));
        });
        let metrics = metrics(&[family.read()]);
        let Some(metric::Data::ExponentialHistogram(histogram)) = &metrics[0].data else { panic!("{metrics:?}") };
        let point = &histogram.data_points[0];
        let buckets = point.positive.as_ref().unwrap();
        assert_eq!((point.count, point.zero_count, point.scale), (4, 1, 2));
        assert_eq!((point.sum, point.exemplars.len()), (Some(1.6), 3));
        // (2^(i/4), 2^((i+1)/4)]: 0.3 lies in i = -7, 1.0 in i = -1.
        assert_eq!((buckets.offset, buckets.bucket_counts.as_slice()), (-7, &[2, 0, 0, 0, 0, 0, 1][..]));
    }

    #[test]
    fn what_does_not_apply_is_absent() {
        let reading = Reading::new(&REQUESTS).with(&["a", "o", "p", "200", "", ""], 1.0);
        let metrics = metrics(&[reading]);
        let Some(metric::Data::Sum(sum)) = &metrics[0].data else { panic!("{metrics:?}") };
        assert!(sum.is_monotonic);
        let keys: Vec<&str> = sum.data_points[0].attributes.iter().map(|a| a.key.as_str()).collect();
        assert_eq!(keys, ["api", "operation", "pool", "status"]);
    }
}
