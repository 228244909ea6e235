// @ts-check
// As much of a page as the parts need that make elements: what was set, and who stands in whom.

export class Fake {
  /** @param {string} tag */
  constructor(tag) {
    this.tag = tag;
    this.text = "";
    this.style = { display: "" };
    this.dataset = /** @type {Record<string, string>} */ ({});
    this.classList = { toggle: () => {} };
    this.hidden = false;
    this.children = /** @type {Fake[]} */ ([]);
    this.parent = /** @type {Fake | null} */ (null);
    this.attributes = /** @type {Record<string, string>} */ ({});
    this.listeners = /** @type {Record<string, (event: object) => void>} */ ({});
    this.moved = 0;                                         // how often a child was put somewhere
  }

  /** @param {string} name @param {string} value */
  setAttribute(name, value) { this.attributes[name] = value; }

  /** @param {string} event @param {(event: object) => void} call */
  addEventListener(event, call) { this.listeners[event] = call; }

  /** @param {...(Fake | string)} nodes */
  append(...nodes) { for (const node of nodes) typeof node === "string" ? this.textContent = node : this.insertBefore(node, null); }

  /** @param {Fake} node */
  appendChild(node) { return this.insertBefore(node, null); }

  /** @param {...Fake} nodes */
  replaceChildren(...nodes) { for (const node of [...this.children]) node.remove(); this.append(...nodes); }

  /** @param {Fake} node @param {Fake | null} before */
  insertBefore(node, before) {
    node.remove();
    this.children.splice(before ? this.children.indexOf(before) : this.children.length, 0, node);
    node.parent = this;
    this.moved += 1;
    return node;
  }

  remove() {
    this.parent?.children.splice(this.parent.children.indexOf(this), 1);
    this.parent = null;
  }

  getBoundingClientRect() { return { left: 0, width: 360 }; }     // as wide as the picture, so that a pixel is a unit

  set textContent(/** @type {string} */ text) { this.text = text; }

  get textContent() { return this.text + this.children.map((/** @type {Fake} */ node) => node.textContent).join(""); }

  /** All in it, in the order of the page, that have a tag. @param {string} tag @returns {Fake[]} */
  all(tag) { return this.children.flatMap((node) => [...(node.tag === tag ? [node] : []), ...node.all(tag)]); }
}

/** Make it the page that modules find. */
export function open() {
  const make = (/** @type {string} */ tag) => new Fake(tag);
  Object.assign(globalThis, { document: { createElement: make, createElementNS: (/** @type {string} */ _, /** @type {string} */ tag) => make(tag) } });
}

/** What a module made, as what it is here. @param {Element} node */
export const seen = (node) => /** @type {Fake} */ (/** @type {unknown} */ (node));

/** The other way round, for what a module is given. @param {Fake} node */
export const given = (node) => /** @type {Element} */ (/** @type {unknown} */ (node));
