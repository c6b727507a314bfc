// The console in a real browser. MODE says what is looked at; what was seen is told as JSON.

const assert = require("node:assert/strict");
const { writeFileSync } = require("node:fs");
const puppeteer = require("puppeteer-core");

const { ADMIN, TOKEN, MODE, OUT, HOME, CHROMIUM = "/usr/bin/chromium" } = process.env;
const FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"];
const PATIENCE = 60_000;

/** What the page complained of, and what it asked others for. */
const complaints = [];
const strangers = [];

async function open(browser, { token = TOKEN, dark = false, width = 1280, height = 900 } = {}) {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.on("console", (message) => {
    const isExpected = /status of (401|404)/.test(message.text()) || /ERR_CONNECTION_REFUSED/.test(message.text());
    if (["error", "warn"].includes(message.type()) && !isExpected) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("dialog", (dialog) => dialog.accept());
  page.on("request", (request) => {
    if (!request.url().startsWith(ADMIN) && !request.url().startsWith("data:")) strangers.push(request.url());
  });
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
  await page.goto(`${ADMIN}/`);
  assert.equal(page.url(), `${ADMIN}/console`);
  if (token) await enter(page, token);
  return page;
}

async function enter(page, token) {
  await page.waitForSelector("#ask[open]");
  await page.type("#token", token);
  await page.keyboard.press("Enter");
}

const live = (page) => page.waitForFunction(() => document.documentElement.dataset.live === "yes" && document.querySelectorAll("#pools tbody").length > 0);
const texts = (page, selector) => page.$$eval(selector, (all) => all.map((one) => one.textContent.trim()));
const rows = (page, table) => page.$$eval(`#${table} tbody tr`, (all) => all.map((row) => [...row.cells].map((cell) => cell.textContent.trim())));

/** How many points of each chart are in the colour of a line. */
const drawn = (page) => page.$$eval(".chart", (all) => all.map((chart) => {
  const lines = [...chart.querySelectorAll(".legend i")].map((one) => getComputedStyle(one).backgroundColor.match(/\d+/g).slice(0, 3).map(Number));
  const canvas = chart.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let at = 0; at < data.length; at += 4) {
    const isLine = ([r, g, b]) => Math.abs(data[at] - r) + Math.abs(data[at + 1] - g) + Math.abs(data[at + 2] - b) < 24;
    if (data[at + 3] > 180 && lines.some(isLine)) count += 1;
  }
  return count;
}));

/** What the theme makes of the page: ground and text. */
const colours = (page) => page.evaluate(() => {
  const style = getComputedStyle(document.body);
  return [style.backgroundColor, style.color];
});

async function picture(page, name) {
  await page.screenshot({ path: `${OUT}/${name}.png`, fullPage: true });
}

/** Under load: both themes, sizes, keys, names of strangers, a wrong token. */
async function look(browser) {
  const page = await open(browser, { token: null });
  await enter(page, "wrong");
  await page.waitForFunction(() => document.getElementById("ask-wrong").textContent.includes("wrong"));
  const refused = await texts(page, "#pools tbody");
  await picture(page, "token");
  await enter(page, TOKEN);
  await live(page);
  await page.waitForFunction(() => document.querySelectorAll("#recent tbody tr button").length > 5);
  await page.waitForFunction(() => document.querySelector("#chart-requests li b").textContent !== "–");
  const charts = await drawn(page);
  const described = await page.$$eval(".plot", (all) => all.map((plot) => plot.getAttribute("aria-label")));
  await page.click("#chart-latency summary");
  await page.waitForFunction(() => document.querySelectorAll("#chart-latency tbody tr").length > 3);
  const table = await texts(page, "#chart-latency tbody tr");
  await page.click("#chart-latency summary");

  // Names of strangers are text.
  const strange = await page.evaluate(() => ({
    images: document.querySelectorAll("main img").length, isRun: globalThis.strange === true,
    shown: document.body.textContent.includes("<img src=x onerror="),
  }));
  const kinds = {};
  for (const kind of ["slow", "queued", "retried", "spilled", "cached", "failed"]) {
    await page.$eval(`#kinds input[value=${kind}]`, (input) => input.click());
    await page.waitForFunction(() => document.querySelectorAll("#recent tbody tr button").length > 0);
    kinds[kind] = (await rows(page, "recent"))[0];
  }
  // Filters, and the words of a label.
  await page.select("#blame", "network");
  await page.waitForFunction(() => [...document.querySelectorAll("#recent tbody tr")].every((row) => row.cells[2].textContent === "network"));
  await page.focus("#recent tbody button");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#recent .more");
  const explained = await page.$eval("#recent .more", (row) => row.textContent);
  await page.waitForFunction(() => document.activeElement.getAttribute("aria-expanded") === "true");
  const held = await page.evaluate(async () => {
    // Tables are brought up to date meanwhile; focus stays.
    await new Promise((done) => setTimeout(done, 3000));
    return document.activeElement.getAttribute("aria-expanded");
  });
  await page.keyboard.press("Enter");
  await page.select("#blame", "");

  const light = await colours(page);
  await page.setViewport({ width: 1440, height: 1000 });
  await page.evaluate(() => scrollTo(0, 0));
  await picture(page, "light");
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  const dark = await colours(page);
  await page.evaluate(() => new Promise((done) => setTimeout(done, 1500)));
  await picture(page, "dark");
  await page.click("#theme");
  const toggled = await colours(page);
  await page.click("#theme");
  const back = await colours(page);
  await page.click("#theme");
  await page.setViewport({ width: 1280, height: 800 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  await page.setViewport({ width: 390, height: 844, isMobile: true });
  await page.evaluate(() => new Promise((done) => setTimeout(done, 500)));
  const narrow = await page.evaluate(() => document.documentElement.scrollWidth);
  await picture(page, "phone");
  await page.setViewport({ width: 1280, height: 900 });

  // By keys alone: what is reached has a visible focus.
  await page.reload();
  await live(page);
  const reached = [];
  for (let at = 0; at < 30; at++) {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => {
      const { activeElement: one } = document;
      const style = getComputedStyle(one.closest("fieldset label") ?? one);
      return [one.id || one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") || one.textContent.trim().slice(0, 30), style.outlineStyle !== "none" && style.outlineWidth !== "0px"];
    }));
  }
  return { refused, charts, described, table, strange, kinds, explained, held, light, dark, toggled, back, wide, narrow, reached };
}

/** At rest: the numbers, a drain by keys, a pause, a gateway that goes away and comes back. */
async function read(browser) {
  const page = await open(browser);
  await live(page);
  await page.waitForFunction(() => document.querySelectorAll("#callers tbody tr").length > 0);
  const facts = Object.fromEntries(await page.$$eval("#facts div", (all) => all.map((one) => [one.firstChild.textContent, one.lastChild.textContent])));
  const seen = { facts, pools: await rows(page, "pools"), callers: await rows(page, "callers"), cache: await rows(page, "cache"), recent: await rows(page, "recent") };
  const press = async (name) => {
    await page.waitForSelector(`#pools button[aria-label^="${name} "]:not(:disabled)`);
    await page.focus(`#pools button[aria-label^="${name} "]`);
    await page.keyboard.press("Enter");
  };
  await press("Drain");
  await page.waitForSelector('#pools button[aria-label^="Undrain "]');
  seen.drained = await rows(page, "pools");
  seen.notice = await page.$eval("#notice", (notice) => notice.textContent);
  await press("Undrain");
  await page.waitForFunction(() => !document.querySelector('#pools button[aria-label^="Undrain "]'));
  await page.click("#pause");
  seen.paused = await page.$eval("#pause", (button) => [button.getAttribute("aria-pressed"), button.textContent]);
  await page.click("#pause");

  // The test stops the gateway when it sees this file, and starts it again at the next.
  writeFileSync(`${HOME}/stop`, "");
  await page.waitForFunction(() => document.documentElement.dataset.live === "no");
  seen.away = await page.$eval("#notice", (notice) => [notice.textContent, notice.getAttribute("role"), notice.className]);
  await picture(page, "away");
  writeFileSync(`${HOME}/start`, "");
  await page.waitForFunction(() => document.documentElement.dataset.live === "yes");
  seen.back = await page.$eval("#notice", (notice) => notice.textContent);
  return seen;
}

/** A listener without a token shows all at once. */
async function bare(browser) {
  const page = await open(browser, { token: null });
  await live(page);
  return { isAsked: await page.$eval("#ask", (dialog) => dialog.open), pools: await rows(page, "pools") };
}

async function main() {
  const browser = await puppeteer.launch({ executablePath: CHROMIUM, args: FLAGS, userDataDir: `${HOME}/browser-${MODE}` });
  try {
    const seen = await { look, read, bare }[MODE](browser);
    console.log(JSON.stringify({ ...seen, complaints, strangers }));
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error, complaints);
  process.exit(1);
});
