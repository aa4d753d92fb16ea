// Pages that were opened as files may start no workers, and searching is done by one. Here it runs in a hidden
// frame instead. The theme's search looks for the name IFrameWorker, to find its own files.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this._postTo = new Promise((loaded, failed) => {
        const script = frame.contentDocument.createElement("script");
        script.src = url;
        script.onload = () => loaded((data) => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
        script.onerror = () => failed(new Error(`${url} was not loaded`));
        frame.contentDocument.head.append(script);
      });
    }

    postMessage(data) {
      this._postTo.then((post) => post(data)); // in the order of the calls
    }
  };
  window.Worker = window.IFrameWorker;
}
