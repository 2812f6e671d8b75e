// A person at the browser, without a mouse: goes through the login pages as the job on standard input says and prints
// what each page was like, what was sent, and what the app showed at the end.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import path from "node:path";

const job = JSON.parse(readFileSync(0, "utf8"));
const { chromium } = createRequire(path.join(job.modules, "here.js"))("playwright-core");
const browser = await chromium.launchPersistentContext(job.profile, {
  executablePath: job.chromium,
  headless: true,
  locale: job.locale,
  colorScheme: job.dark ? "dark" : "light",
  viewport: { width: job.width || 800, height: 700 },
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const page = browser.pages()[0];
page.setDefaultTimeout(15000);
const report = { pages: [], requests: [], console: [], app: {} };
page.on("console", (message) => message.type() === "error" && report.console.push(message.text()));
page.on("request", (request) => report.requests.push([request.method(), request.url(), request.postData() || ""]));

const focused = () => page.evaluate(() => {
  const one = document.activeElement;
  return { id: one.id, value: one.value || "", tag: one.tagName.toLowerCase(), type: one.type || "" };
});

// What a page lacks for people who do not see it, or not well. Colours after WCAG 2.2, 1.4.3.
const inspect = () => page.evaluate(() => {
  const channels = (colour) => (colour.match(/[\d.]+/g) || []).map(Number);
  const over = (top, below) => {
    const alpha = top.length > 3 ? top[3] : 1;
    return below.map((one, index) => top[index] * alpha + one * (1 - alpha));
  };
  const light = ([r, g, b]) => [r, g, b]
    .map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
  const chain = (one) => (one ? [...chain(one.parentElement), one] : []);
  const probe = document.createElement("i");
  probe.style.color = "Canvas";
  document.body.append(probe);
  const canvas = channels(getComputedStyle(probe).color).slice(0, 3);
  probe.remove();
  const contrast = (element) => {
    let ground = canvas;
    let opacity = 1;
    for (const one of chain(element)) {
      ground = over(channels(getComputedStyle(one).backgroundColor), ground);
      opacity *= Number(getComputedStyle(one).opacity);
    }
    const ink = over([...channels(getComputedStyle(element).color).slice(0, 3), opacity], ground);
    const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const texts = [...document.querySelectorAll("main *")].filter(
    (one) => [...one.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim()),
  );
  const inputs = [...document.querySelectorAll("input:not([type=hidden])")];
  return {
    path: location.pathname.split("/").pop(),
    lang: document.documentElement.lang,
    title: document.title,
    heading: document.querySelector("h1").textContent,
    text: document.querySelector("main").innerText,
    unlabelled: inputs.filter((one) => ![...one.labels].some((label) => label.innerText.trim())).map((one) => one.id),
    contrast: Math.min(...texts.map(contrast)),
    overflow: document.documentElement.scrollWidth > window.innerWidth,
    // Of what is hit with a finger: a box or button with its label.
    smallest: Math.min(...[...document.querySelectorAll("input:not([type=hidden]), button")].map((one) =>
      Math.max(...[one, ...(one.labels || [])].map((part) => part.getBoundingClientRect().height)))),
    styled: document.styleSheets.length === 1 && document.styleSheets[0].cssRules.length > 0,
    describedBy: document.activeElement.getAttribute("aria-describedby"),
  };
});

async function meet(name) {
  report.pages.push({ name, focus: await focused(), ...(await inspect()) });
  if (job.shots) await page.screenshot({ path: `${job.shots}-${report.pages.length}-${name}.png`, fullPage: true });
}

// Presses Tab until the wanted control has the focus, and remembers the way.
async function tabTo(wanted) {
  const way = [];
  for (let presses = 0; presses < 40; presses += 1) {
    const now = await focused();
    way.push(now.id || now.value || now.tag);
    if (wanted(now)) {
      report.pages.at(-1).way = way;
      return;
    }
    await page.keyboard.press("Tab");
  }
  throw new Error(`not to be reached by keyboard on ${page.url()}: ${way}`);
}

const press = (key) => Promise.all([page.waitForNavigation(), page.keyboard.press(key)]);

async function logIn(password) {
  if ((await focused()).id === "name") {
    await page.keyboard.type(job.user);
    await page.keyboard.press("Tab");
  }
  await page.keyboard.type(password);
  await press("Enter");
}

const steps = {
  async login() {
    await meet("login");
    if (job.mistake) {
      await logIn(job.mistake);
      await meet("mistake");
    }
    await logIn(job.password);
  },
  async patient() {
    await meet("patient");
    await page.keyboard.type(job.search);
    await press("Enter");
    await meet("found");
    await tabTo((one) => one.type === "radio");
    await page.keyboard.press("Space");
    await tabTo((one) => one.tag === "button");
    await press("Enter");
  },
  async visit() {
    await meet("visit");
    await tabTo((one) => one.type === "radio");
    await page.keyboard.press("Space");
    await tabTo((one) => one.tag === "button");
    await press("Enter");
  },
  async consent() {
    await meet("consent");
    for (const scope of job.drop) {
      await tabTo((one) => one.value === scope);
      await page.keyboard.press("Space");
    }
    await tabTo((one) => one.tag === "button" && one.value === job.answer);
    await press("Enter");
  },
};

try {
  await page.goto(job.start);
  await page.waitForURL((url) => !url.href.startsWith(job.app));
  while (!page.url().startsWith(job.app)) {
    await page.waitForLoadState();
    const step = await page.evaluate(() =>
      document.querySelector("form[method=post]")?.getAttribute("action").split("/").pop());
    if (!steps[step]) throw new Error(`stuck at ${page.url()}: ${await page.innerText("body")}`);
    await steps[step]();
  }
  await page.waitForFunction(() => document.title === "Pulse: done");
  report.app = await page.evaluate(() => ({
    ...Object.fromEntries([...document.querySelectorAll("[id]")].map((one) => [one.id, one.innerText])),
    address: location.href,
  }));
} catch (error) {
  report.error = String(error.stack);
} finally {
  await browser.close();
}
console.log(JSON.stringify(report));
