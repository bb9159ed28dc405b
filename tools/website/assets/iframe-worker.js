/* Search in pages that were opened from the disk, for which Chromium starts no workers: the script of the worker runs in
   a hidden frame instead. The theme looks for a file with this name, and would load another one from the network. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = null
      this.addEventListener("message", (event) => this.onmessage?.(event))
      const frame = document.createElement("iframe")
      frame.hidden = true
      this.window = new Promise((resolve) => {
        frame.addEventListener("load", () => {
          // The frame has the origin of the page, so that both can call each other.
          const inside = frame.contentWindow
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
          const script = inside.document.createElement("script")
          script.src = url
          script.addEventListener("load", () => resolve(inside))
          inside.document.head.append(script)
        })
      })
      frame.srcdoc = "<!doctype html><title>search</title>"
      document.body.append(frame)
    }

    async postMessage(data) {
      (await this.window).dispatchEvent(new MessageEvent("message", { data }))
    }
  }
}
