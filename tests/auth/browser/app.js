// A small SMART app: who is the patient, what were the pulses, and what is refused.
const show = (id, text) => {
  document.getElementById(id).textContent = text;
};
const outcome = (promise) => promise.then(() => "allowed", (error) => String(error.statusCode || error.status || error));

async function run() {
  const client = await FHIR.oauth2.ready();
  show("granted", client.state.tokenResponse.scope);
  show("user", client.user.fhirUser || "");
  const patient = await client.patient.read();
  show("patient", `${patient.name[0].given[0]} ${patient.name[0].family} (${patient.id})`);
  // Two on a page, so that the links between the pages are followed, too.
  const pulses = await client.request("Observation?_sort=_id&_count=2", { pageLimit: 0, flat: true });
  for (const one of pulses) {
    const item = document.createElement("li");
    item.textContent = `${one.subject.reference} ${one.valueQuantity.value}`;
    document.getElementById("pulses").append(item);
  }
  show("conditions", await outcome(client.request("Condition")));
  show("other", await outcome(client.request("Patient/p3")));
  if (client.state.tokenResponse.refresh_token) {
    const before = client.state.tokenResponse.access_token;
    await client.refresh();
    const again = await outcome(client.request("Observation"));
    show("refreshed", `${before !== client.state.tokenResponse.access_token ? "new token" : "same token"}, ${again}`);
  }
}

run()
  .catch((error) => show("problem", error.message))
  .finally(() => {
    document.title = "Pulse: done";
  });
