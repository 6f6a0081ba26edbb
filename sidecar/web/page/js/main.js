document.title = "Rankguard";
