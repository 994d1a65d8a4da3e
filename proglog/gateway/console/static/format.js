// Numbers for people. Narrow spaces part the thousands, as SI has it.
export const number = (n) => Math.round(n).toLocaleString("en-US").replaceAll(",", "\u202f");

export function si(n) {
  if (n >= 1e6) return (n / 1e6).toFixed(n >= 1e7 ? 1 : 2) + " M";
  if (n >= 1e3) return (n / 1e3).toFixed(n >= 1e4 ? 0 : 1) + " k";
  return n < 10 && n > 0 ? n.toFixed(1).replace(/\.0$/, "") : String(Math.round(n));
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < 4) { n /= 1024; unit++; }
  return (unit && n < 100 ? n.toFixed(1) : Math.round(n)) + " " + units[unit];
}

export function seconds(n) {
  if (n === null || n === undefined || Number.isNaN(n)) return "–";
  if (n === 0) return "0";
  if (n < 1e-3) return (n * 1e6).toFixed(0) + " µs";
  if (n < 1) return (n * 1e3).toFixed(n < 0.01 ? 1 : 0) + " ms";
  return n.toFixed(1) + " s";
}

export function span(ms) {
  const minutes = Math.floor(ms / 60e3), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  if (minutes) return `${minutes} min`;
  return `${Math.max(0, Math.floor(ms / 1e3))} s`;
}

export const clock = (ms, sub) => new Date(ms).toISOString().slice(11, sub ? 23 : 19);
export const day = (ms) => new Date(ms).toISOString().slice(0, 10);
export const moment = (ms) => new Date(ms).toISOString().replace("T", " ").replace("Z", "");
