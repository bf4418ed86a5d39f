// A plugin for Piko: says hello to requests for /hello, and lets all others pass with a header.
const bytes = (text) => new TextEncoder().encode(text);

export const lifecycle = {
  init(config) {},
};

export const requestHook = {
  onRequest(request) {
    if (request.pathWithQuery() === '/hello') {
      return { tag: 'respond', val: { status: 200, headers: [], body: bytes('hello from {{name}}\n') } };
    }
    request.setHeader('x-plugin', bytes('{{name}}'));
    return { tag: 'next' };
  },
};
