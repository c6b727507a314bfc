//! Console: the page for people. Its files are open, since they hold no data; what it shows it asks for with the
//! operator's token. `docs/console.md` tells what is where.

use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::problem::Problem;

/// Name, type and text of each file. As they are written: there is no build step (docs/decisions/0020).
const FILES: &[(&str, &str, &str)] = &[
    ("console.css", CSS, include_str!("../../console/console.css")),
    ("console.js", JS, include_str!("../../console/console.js")),
    ("api.js", JS, include_str!("../../console/api.js")),
    ("charts.js", JS, include_str!("../../console/charts.js")),
    ("format.js", JS, include_str!("../../console/format.js")),
    ("panels.js", JS, include_str!("../../console/panels.js")),
    ("uplot.js", JS, include_str!("../../third_party/uplot/uPlot.esm.js")),
    ("uplot.css", CSS, include_str!("../../third_party/uplot/uPlot.min.css")),
    ("uplot-license.txt", "text/plain; charset=utf-8", include_str!("../../third_party/uplot/LICENSE")),
];
const PAGE: &str = include_str!("../../console/index.html");
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// What the page may do: its own files and this listener, nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn lead() -> Redirect {
    // Relative, for those who put the listener behind a path.
    Redirect::temporary("console")
}

pub(super) async fn page() -> Response {
    served(HTML, PAGE)
}

pub(super) async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => served(kind, text),
        None => Problem::new(StatusCode::NOT_FOUND, "the console has no such file").into_response(),
    }
}

fn served(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), text).into_response()
}
