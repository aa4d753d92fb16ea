// Times and sizes as people read them.

const two = (number) => String(number).padStart(2, "0");

export function clock(us) {
  const at = new Date(us / 1000);
  return two(at.getHours()) + ":" + two(at.getMinutes()) + ":" + two(at.getSeconds()) + "." + String(at.getMilliseconds()).padStart(3, "0");
}
export function day(us) {
  const at = new Date(us / 1000);
  return at.getFullYear() + "-" + two(at.getMonth() + 1) + "-" + two(at.getDate());
}
export function when(us) {
  return day(us) === day(Date.now() * 1000) ? clock(us).slice(0, 8) : day(us) + " " + clock(us).slice(0, 5);
}
export function lasted(us) {
  if (us < 999.5) return Math.round(us) + " µs";
  if (us < 999.5e3) return (us / 1000).toPrecision(3) + " ms";
  if (us < 59.95e6) return (us / 1e6).toPrecision(3) + " s";
  const s = Math.round(us / 1e6);
  if (s < 3600) return Math.floor(s / 60) + " min " + s % 60 + " s";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
  return Math.floor(s / 86400) + " d " + Math.floor((s % 86400) / 3600) + " h";
}
export function bytes(amount) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (amount < 1024 || unit === "GiB") return (unit === "B" ? amount : amount.toFixed(1)) + " " + unit;
    amount /= 1024;
  }
}
