//! A page per engine as the engine writes it, the traps of the reference, and pages that mean harm.

use super::*;

const NIM_1: &str = r#"# HELP num_requests_running Number of requests currently running on GPU.
# TYPE num_requests_running gauge
num_requests_running{model_name="meta/llama-3.1-8b-instruct"} 4.0
# HELP num_requests_waiting Number of requests waiting to be processed.
# TYPE num_requests_waiting gauge
num_requests_waiting{model_name="meta/llama-3.1-8b-instruct"} 1.0
# HELP num_request_max Max number of concurrently running requests.
# TYPE num_request_max gauge
num_request_max{model_name="meta/llama-3.1-8b-instruct"} 256.0
# HELP gpu_cache_usage_perc GPU KV-cache usage. 1 means 100 percent usage.
# TYPE gpu_cache_usage_perc gauge
gpu_cache_usage_perc{model_name="meta/llama-3.1-8b-instruct"} 0.25
# TYPE request_success_total counter
request_success_total{model_name="meta/llama-3.1-8b-instruct"} 900.0
# TYPE time_to_first_token_seconds histogram
time_to_first_token_seconds_bucket{le="0.001",model_name="meta/llama-3.1-8b-instruct"} 0.0
time_to_first_token_seconds_bucket{le="+Inf",model_name="meta/llama-3.1-8b-instruct"} 900.0
time_to_first_token_seconds_sum{model_name="meta/llama-3.1-8b-instruct"} 31.5
"#;

const VLLM: &str = r#"# HELP python_info Python platform information.
python_info{implementation="CPython",major="3",minor="12"} 1.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 5.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 70.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.125
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.9
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="27100"} 1.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters=""} 1.7365e+09
"#;

const SGLANG: &str = r#"# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",priority="",tp_rank="0"} 6.0
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",priority="1",tp_rank="0"} 4.0
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",priority="2",tp_rank="0"} 2.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 7.0
sglang:token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.28
sglang:cache_hit_rate{model_name="m"} 0.0075
"#;

const TRTLLM: &str = r#"# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 8.0
trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 9.0
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m"} 0.75
trtllm_kv_cache_tokens_per_block{model_name="m"} 32
"#;

const TRITON_TRTLLM: &str = r#"# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 40
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 5
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.4
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 6239
nv_inference_pending_request_count{model="preprocessing",version="1"} 11
"#;

const TRITON: &str = r#"# HELP nv_inference_pending_request_count Instantaneous number of pending requests
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="encoder",version="1"} 3
nv_inference_pending_request_count{model="tokenizer",version="1"} 1
nv_inference_exec_count{model="encoder",version="1"} 55555
nv_gpu_utilization{gpu_uuid="GPU-9a1c"} 0.93
"#;

fn signals(running: f64, waiting: f64, capacity: f64, kv_usage: f64) -> Signals {
    let some = |value: f64| (!value.is_nan()).then_some(value);
    Signals { running: some(running), waiting: some(waiting), capacity: some(capacity), kv_usage: some(kv_usage) }
}

const NONE: f64 = f64::NAN;

fn waiting(page: &str) -> Option<f64> {
    Signals::read(page.as_bytes()).unwrap().waiting
}

#[test]
fn every_engine_is_understood() {
    let read = |page: &str| Signals::read(page.as_bytes()).unwrap();
    assert_eq!(read(NIM_1), signals(4.0, 1.0, 256.0, 0.25));
    assert_eq!(read(VLLM), signals(8.0, 2.0, NONE, 0.5));
    assert_eq!(read(SGLANG), signals(6.0, 7.0, NONE, 0.28));
    assert_eq!(read(&SGLANG.replace("sglang:", "sglang_")), signals(6.0, 7.0, NONE, 0.28));
    assert_eq!(read(TRTLLM), signals(8.0, 9.0, NONE, 0.75));
    assert_eq!(read(TRITON_TRTLLM), signals(3.0, 2.0, 512.0, 0.4));
    assert_eq!(read(TRITON), signals(NONE, 4.0, NONE, NONE));
}

#[test]
fn the_prefix_may_be_there_or_not_and_both_do_not_add_up() {
    let bare = VLLM.replace("vllm:", "");
    assert_eq!(Signals::read(bare.as_bytes()), Signals::read(VLLM.as_bytes()));
    assert_eq!(Signals::read(format!("{bare}{VLLM}").as_bytes()), Signals::read(VLLM.as_bytes()));
    assert_eq!(Signals::read(format!("{VLLM}{bare}").as_bytes()), Signals::read(VLLM.as_bytes()));
}

#[test]
fn the_older_cache_name_counts_where_it_is_alone() {
    let page = "vllm:gpu_cache_usage_perc 0.5\nvllm:num_requests_waiting 1\n";
    assert_eq!(Signals::read(page.as_bytes()), Ok(signals(NONE, 1.0, NONE, 0.5)));
}

#[test]
fn names_count_only_as_a_whole() {
    for name in ["vllm:num_requests_waiting_by_reason", "my_num_requests_waiting", "num_requests_waitin", "x:y"] {
        assert_eq!(Signals::read(format!("{name}{{reason=\"deferred\"}} 5\n").as_bytes()), Err(Unusable::NothingKnown));
    }
    let help = "# HELP num_requests_waiting 7\n# num_requests_waiting 8\n";
    assert_eq!(Signals::read(help.as_bytes()), Err(Unusable::NothingKnown));
    let sub_type = "nv_trt_llm_request_metrics{sub_request_type=\"waiting\",request_type=\"other\"} 5\n";
    assert_eq!(Signals::read(sub_type.as_bytes()), Err(Unusable::NothingKnown));
}

#[test]
fn all_forms_of_a_sample_are_read() {
    for (line, expected) in [
        ("num_requests_waiting 3", 3.0),
        ("num_requests_waiting\t3\t", 3.0),
        ("  num_requests_waiting 3e0 1736500000000", 3.0),
        ("num_requests_waiting {} 3", 3.0),
        ("num_requests_waiting{a=\"b\",} 3", 3.0),
        ("num_requests_waiting{ a = \"b\" , c=\"\" }3 1.7e9", 3.0),
        ("num_requests_waiting{a=\"} 9 \\\" # \\\\\"} 3", 3.0),
        ("num_requests_waiting{a=\"ünï\\n\"} 3 # {trace_id=\"x\"} 1.0 1.7e9", 3.0),
        ("num_requests_waiting 3\r\n# EOF\r\nnum_requests_waiting 4\r", 3.0),
        ("\u{feff}num_requests_waiting +3.0\n\n\n", 3.0),
        ("num_requests_waiting -0", 0.0),
    ] {
        assert_eq!(waiting(line), Some(expected), "{line:?}");
    }
}

#[test]
fn what_can_not_be_true_is_absent() {
    for value in ["NaN", "+Inf", "-Inf", "-1", "1000001", "1e300", "x", "", "3 4 5", "3 x", "0x10", "1_0"] {
        assert_eq!(waiting(&format!("num_requests_waiting {value}\n")), None, "{value:?}");
        let ranks = format!("num_requests_waiting{{engine=\"0\"}} 2\nnum_requests_waiting{{engine=\"1\"}} {value}\n");
        assert_eq!(waiting(&ranks), None, "{value:?}");
    }
    for labels in ["{", "{a", "{a=", "{a=\"b", "{a=\"b\"", "{a=\"b\" c=\"d\"}", "{a=b}", "{=}", "{a=\"\\\"}"] {
        assert_eq!(waiting(&format!("num_requests_waiting{labels} 3\n")), None, "{labels:?}");
    }
    assert_eq!(waiting("num_requests_waiting 600000\nnum_requests_waiting 600000\n"), None);
    for (value, expected) in
        [("1.0009", Some(1.0)), ("1.01", None), ("45", None), ("-0.1", None), ("NaN", None), ("1", Some(1.0))]
    {
        let page = format!("kv_cache_usage_perc {value}\nnum_requests_running 1\n");
        assert_eq!(
            Signals::read(page.as_bytes()),
            Ok(Signals { kv_usage: expected, ..signals(1.0, NONE, NONE, NONE) })
        );
    }
}

#[test]
fn pages_of_something_else_are_unusable() {
    let read = Signals::read;
    assert_eq!(read(b""), Err(Unusable::Empty));
    assert_eq!(read(b" \r\n\t\n"), Err(Unusable::Empty));
    assert_eq!(read(b"\n<!DOCTYPE html><html>\nnum_requests_waiting 3\n</html>"), Err(Unusable::Html));
    assert_eq!(read(b"\x1f\x8b\x08\x00\xff\xfe"), Err(Unusable::Binary));
    assert_eq!(read(b"num_requests_waiting 3\n\0\n"), Err(Unusable::Binary));
    assert_eq!(read(b"{\"detail\":\"Not Found\"}"), Err(Unusable::NothingKnown));
    assert_eq!(read(b"gpu_utilization 0.5\nrequest_count_total 3\n"), Err(Unusable::NothingKnown));
    assert_eq!(Unusable::Html.to_string(), "a web page");
}

#[test]
fn both_forms_of_an_orca_report_are_read() {
    let expected = Ok(signals(NONE, 3.0, NONE, 0.4));
    let text = "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0";
    assert_eq!(Signals::orca(text.as_bytes()), expected);
    let text = "TEXT cpu_utilization=0.9,named_metrics.num_requests_waiting=3,named_metrics.kv_cache_utilization=0.4";
    assert_eq!(Signals::orca(text.as_bytes()), expected);
    let json = r#"JSON {"cpu_utilization":0.3,"named_metrics":{"kv_cache_usage_perc":0.4,"num_requests_waiting":3}}"#;
    assert_eq!(Signals::orca(json.as_bytes()), expected);
    let absurd =
        r#"JSON {"named_metrics":{"kv_cache_usage_perc":40,"num_requests_waiting":"3","num_requests_running":1}}"#;
    assert_eq!(Signals::orca(absurd.as_bytes()), Ok(signals(1.0, NONE, NONE, NONE)));
    assert_eq!(
        Signals::orca(b"TEXT named_metrics.num_requests_waiting=NaN"),
        Ok(Signals::default()),
        "known, but nothing to believe"
    );
}

#[test]
fn orca_reports_that_are_none_are_unusable() {
    let deep = format!("JSON {}", "[".repeat(5000));
    let long = format!("TEXT named_metrics.num_requests_waiting=3,{}", "a=1,".repeat(3000));
    for header in
        ["TEXT", "BIN CZqZ", "text a=1", "TEXT abc", "JSON {", "JSON NaN", "{\"named_metrics\":{}}", &deep, &long]
    {
        assert_eq!(Signals::orca(header.as_bytes()), Err(Unusable::Malformed), "{header}");
    }
    for header in ["TEXT num_requests_waiting=3", "JSON {}", "JSON []", "JSON {\"named_metrics\":3}", "TEXT a=1"] {
        assert_eq!(Signals::orca(header.as_bytes()), Err(Unusable::NothingKnown), "{header}");
    }
    assert_eq!(Signals::orca(b" "), Err(Unusable::Empty));
    assert_eq!(Signals::orca(b"TEXT \xff"), Err(Unusable::Binary));
}

#[test]
fn mutated_pages_neither_panic_nor_yield_absurd_signals() {
    let mut random = fastrand::Rng::with_seed(0x0516_0a15);
    let pieces: [&[u8]; 14] =
        [b"{", b"}", b"\"", b"\\", b"=", b",", b"\n", b"\r", b"#", b" ", b"NaN", b"-", b"1e999", b"\xc3"];
    let seeds = [NIM_1, VLLM, SGLANG, TRTLLM, TRITON_TRTLLM, TRITON];
    let orca = ["TEXT named_metrics.kv_cache_usage_perc=0.4", r#"JSON {"named_metrics":{"num_requests_waiting":3}}"#];
    for _ in 0..20_000 {
        let seeds = if random.bool() { &seeds[..] } else { &orca[..] };
        let mut page = random.choice(seeds).copied().unwrap_or_default().as_bytes().to_vec();
        for _ in 0..random.usize(1..12) {
            let at = random.usize(..=page.len());
            match random.u8(..4) {
                0 => drop(page.drain(at..(at + random.usize(..20)).min(page.len()))),
                1 => drop(page.splice(at..at, random.choice(pieces).unwrap_or_default().iter().copied())),
                2 => page.truncate(at),
                _ => page.get_mut(at).into_iter().for_each(|byte| *byte = random.u8(..)),
            }
        }
        for read in [Signals::read(&page), Signals::orca(&page)].into_iter().flatten() {
            let counts = [read.running, read.waiting, read.capacity].into_iter().flatten();
            assert!(counts.clone().all(|count| (0.0..=1e6).contains(&count)), "{read:?}");
            assert!(read.kv_usage.is_none_or(|usage| (0.0..=1.0).contains(&usage)), "{read:?}");
        }
    }
}

#[test]
fn one_endless_line_takes_no_longer_than_many_short_ones() {
    let started = std::time::Instant::now();
    for piece in ["{", "a=\"", "\\", "num_requests_waiting{", "num_requests_waiting{a=\"b\",", "9", "a=\"b\",", "\n"] {
        let page = format!("num_requests_waiting{{{}", piece.repeat((1 << 20) / piece.len()));
        assert_eq!(waiting(&page), None);
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
}
