use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;

use super::*;

const BOUNDS: Bounds = Bounds { records: 3, bytes: 1000, batch: 2, delay: Duration::from_secs(1) };

fn said(key: &str, text: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), text.to_owned())])
}

#[test]
fn an_envelope_is_a_request_of_each_signal() {
    let envelope = Envelope::new(said("service.name", "edge"));
    let span = |name: &str| Span { name: name.into(), ..Span::default() };
    let spans = [record(&span("a")), record(&span("b"))];
    let request = ExportTraceServiceRequest::decode(envelope.seal(&spans)).unwrap();
    let [resource] = &request.resource_spans[..] else { panic!("{request:?}") };
    let [scope] = &resource.scope_spans[..] else { panic!("{request:?}") };
    assert_eq!(scope.spans, [span("a"), span("b")]);
    assert_eq!(scope.scope.as_ref().unwrap().name, "nimgate");
    let attributes = &resource.resource.as_ref().unwrap().attributes;
    let stated = |key: &str| attributes.iter().filter(|a| a.key == key).collect::<Vec<_>>();
    assert_eq!(stated("service.name"), [&value::text("service.name", "edge")]);
    assert_eq!(stated("service.version"), [&value::text("service.version", env!("CARGO_PKG_VERSION"))]);
    assert_eq!((stated("service.instance.id").len(), stated("host.name").len()), (1, 1));

    let metric = Metric { name: "m".into(), ..Metric::default() };
    let request = ExportMetricsServiceRequest::decode(envelope.seal(&[record(&metric)])).unwrap();
    assert_eq!(request.resource_metrics[0].scope_metrics[0].metrics, [metric]);
    // Long enough that its lengths take several bytes.
    let log = LogRecord { body: Some(value::body("x".repeat(4000))), ..LogRecord::default() };
    let logs = vec![log; 100];
    let sealed = envelope.seal(&logs.iter().map(record).collect::<Vec<_>>());
    assert_eq!(ExportLogsServiceRequest::decode(sealed).unwrap().resource_logs[0].scope_logs[0].log_records, logs);
}

#[test]
fn each_process_has_an_id_of_its_own() {
    let id = || {
        let request = ExportLogsServiceRequest::decode(Envelope::new(BTreeMap::new()).seal(&[])).unwrap();
        let resource = request.resource_logs[0].resource.clone().unwrap();
        let id = resource.attributes.into_iter().find(|a| a.key == "service.instance.id").unwrap();
        let Some(Value::StringValue(id)) = id.value.unwrap().value else { panic!() };
        id
    };
    let (one, other) = (id(), id());
    assert_ne!(one, other);
    let parts: Vec<usize> = one.split('-').map(str::len).collect();
    assert!(parts == [8, 4, 4, 4, 12] && one.as_bytes()[14] == b'4' && b"89ab".contains(&one.as_bytes()[19]), "{one}");
}

#[test]
fn a_queue_is_bounded_in_records_and_in_bytes_and_counts_what_it_drops() {
    let queue = Queue::new(BOUNDS);
    queue.push((0..5).map(|at| vec![at]));
    assert_eq!((queue.stats().queued, queue.stats().dropped_full), (3, 2));
    assert_eq!(queue.take(2), [[0], [1]]);
    queue.push([vec![7; 999], vec![8; 1000], vec![9]]);
    assert_eq!((queue.stats().queued, queue.stats().dropped_full), (2, 4));
    assert_eq!(queue.take(9), [vec![2], vec![7; 999]]);
    queue.push([vec![0; 1000]]);
    assert_eq!((queue.stats().queued, queue.stats().dropped_full), (1, 4));
}

#[test]
fn what_is_taken_at_once_fits_an_export() {
    let queue = Queue::new(Bounds { records: 9, bytes: usize::MAX, ..BOUNDS });
    let sizes = [queue::LARGEST / 2, queue::LARGEST / 2 + 1, queue::LARGEST + 1, 1, 1];
    queue.push(sizes.map(|size| vec![0; size]));
    let taken = [(); 4].map(|()| queue.take(9).len());
    assert_eq!(taken, [1, 1, 1, 2]);
}

#[test]
fn an_exporter_that_is_off_takes_nothing() {
    let exporter = Exporter::off();
    exporter.log(LogRecord::default());
    exporter.spans(vec![Span::default()]);
    assert!(!exporter.takes_traces() && !exporter.takes_metrics() && !exporter.takes_logs());
    assert_eq!(exporter.stats(), []);
}
