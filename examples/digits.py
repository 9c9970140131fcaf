"""The loop of the README: a small network on digits, watched and diagnosed."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import diagnostics

pixels, classes = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(classes))
loader = DataLoader(data, batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

with diagnostics.watch(model, optimizer, "runs/digits-mlp") as monitor:
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        monitor.step(loss, closure=lambda: criterion(model(x), y))

run = diagnostics.load("runs/digits-mlp")
diagnosis = diagnostics.diagnose(run)
for finding in diagnosis.findings:
    print(finding.severity, finding.kind, finding.cause, finding.first_step, finding.summary)
