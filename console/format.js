// How figures read.

/** A count in at most four characters: 950, 1.2k, 13M. */
export function count(n) {
  if (n == null) return "–";
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (n >= size) return (n / size < 10 ? (n / size).toFixed(1) : Math.round(n / size)) + unit;
  }
  return String(Math.round(n));
}

/** A rate, with digits after the point while it is small. */
export function rate(n) {
  if (n == null) return "–";
  return Number.isInteger(n) || n >= 10 ? count(n) : n.toFixed(n < 1 ? 2 : 1);
}

/** Milliseconds as people say them. */
export function time(ms) {
  if (ms == null) return "–";
  if (ms === 0) return "0";
  if (ms < 1) return ms.toFixed(2) + " ms";
  if (ms < 10) return ms.toFixed(1) + " ms";
  if (ms < 1000) return Math.round(ms) + " ms";
  if (ms < 60_000) return (ms / 1000).toFixed(ms < 10_000 ? 2 : 1) + " s";
  return Math.round(ms / 60_000) + " min";
}

/** Seconds since the start, or until an end. */
export function span(seconds) {
  if (seconds == null) return "–";
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  if (minutes > 0) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds)} s`;
}

export function bytes(n) {
  if (n == null) return "–";
  for (const [size, unit] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (n >= size) return (n / size).toFixed(1) + " " + unit;
  }
  return n + " B";
}

export function share(n) {
  return n == null ? "–" : (100 * n).toFixed(n > 0 && n < 0.1 ? 1 : 0) + " %";
}

/** The time of day, as the reader's clock has it, of an RFC 3339 text or of milliseconds. */
export function clock(text) {
  const at = new Date(text);
  const two = (n) => String(n).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}
